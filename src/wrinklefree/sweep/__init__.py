"""Search over recipes: a space, trials that are commands, a table in a database that several workers share."""
