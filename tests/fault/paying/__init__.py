"""A service with an effect: its Safe counts one more in a contract, period after period."""
