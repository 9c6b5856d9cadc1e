"""The parts of `steer.fold`: which shifts can be folded, where each one goes, and whether the result is right."""
