"""One file a command: options in, printing out; no logic of their own."""
