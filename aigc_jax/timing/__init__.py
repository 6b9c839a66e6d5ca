"""What `bench` is made of: steps in turns, the machine, the program."""
