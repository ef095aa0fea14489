"""What the tests of the whole platform share: clients, polling, load."""
