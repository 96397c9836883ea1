"""Scene types, classes, geometry, lineage, configs and errors that all packages share."""
