"""Real images: where they come from (`readers`, `torchvision_source`), what is known of them beforehand
(`builtin`, `catalog`), the form every worker reads (`class_store`), and the way from one to the other (`sources`)."""
