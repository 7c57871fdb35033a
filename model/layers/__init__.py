"""The layers of the network, as plain torch modules and functions."""
