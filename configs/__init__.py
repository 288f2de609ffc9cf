"""One file for each data set: what it sets otherwise than base.py, which has all."""
