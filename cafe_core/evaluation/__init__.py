"""What a set of images is worth: the accuracy, on real test images, of fresh networks trained on nothing but it."""
