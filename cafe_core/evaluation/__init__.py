"""Evaluate a set of images by the test accuracy of new networks trained only on it."""
