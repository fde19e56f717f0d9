"""ABCI 2.0 messages, generated from CometBFT's own .proto files by third_party/cometbft/generate_protos.sh."""
