"""The training program: trains a denoiser and its worse version, and finds EMAs that suit them.

Imports `autoguide_fast`, and is never imported by it.
"""
