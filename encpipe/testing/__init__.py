"""What tests of code that uses encpipe need: fakes, faults, and contract suites for back ends."""
