"""Measures tensorcall against bare grpcio, side by side in one run. `make bench`."""
