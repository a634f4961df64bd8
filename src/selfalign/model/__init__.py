"""The brain: streams with one joint attention, TTT layers and the alignment losses. Imports only types."""
