"""What lies in the files of a checkpoint beside its weights, and must not be published."""
