"""`optimize(mesh=…, shard=…)`: from a user's call to a program spread over a mesh."""
