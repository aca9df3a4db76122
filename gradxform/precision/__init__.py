"""Mixed precision: params of 16 bits and their exact masters, and which dtype is computed in."""
