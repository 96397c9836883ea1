"""Scene types, classes, geometry, lineage, configs and errors: what every room shares."""
