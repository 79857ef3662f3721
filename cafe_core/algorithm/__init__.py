"""Implement Algorithm 1 and its parts, independently of jobs, Ray and the web."""
