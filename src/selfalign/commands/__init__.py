"""What the commands of `selfalign` do: each module has a frozen config, whose fields are the flags, and `run`."""
