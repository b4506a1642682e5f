"""A package, so that programs that tests start find it although a dependency may have installed another `tests`."""
