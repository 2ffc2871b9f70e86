"""The demonstration: four releases of a real small model, each to another end."""
