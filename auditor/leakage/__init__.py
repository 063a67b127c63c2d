"""What versions give away alone (NR), beside the original (SR) and together (MR)."""
