"""The network, one mechanism a file. Imports torch and `iris.config` only."""
