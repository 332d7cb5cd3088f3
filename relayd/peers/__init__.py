"""Ways out: the shells that open relayed transport addresses, one module for each REQUESTED-TRANSPORT."""
