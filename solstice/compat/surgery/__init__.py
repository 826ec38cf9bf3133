"""Surgery: looking into a network's forward pass, and changing it, in every library."""
