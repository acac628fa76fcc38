"""`./dev bench`: the vault beside a plain folder and the C and C++ union file systems."""
