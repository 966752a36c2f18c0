"""The gate: whether what is measured may pass, with an answer for each case, `cannot tell` among them."""
