"""SGD, Adam and SplitSGD: figures 6a, 37 and 39 to 45."""
