"""What is done with projections from files to files: each job a module, with a function `run`."""
