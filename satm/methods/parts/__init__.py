"""The parts that methods are composed of."""
