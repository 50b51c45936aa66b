"""Real servers for the tests: on free loopback ports, in their own process groups, gone with their owner."""
