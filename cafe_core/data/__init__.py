"""Read real images (`readers`, `torchvision_source`), describe them without decoding (`builtin`, `catalog`), and build the
class stores that every worker reads (`sources`, `class_store`)."""
