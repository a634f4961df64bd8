"""The policy server: openpi's WebSocket protocol, one model for many robots. docs/serving.md tells how to run it."""
