"""This DAO: its deployment, its settings and the policies of its delegates."""
