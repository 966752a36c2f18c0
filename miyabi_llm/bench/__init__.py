"""Numbers one can trust: load, measurement, statistics, and a gate that CI can stand on."""
