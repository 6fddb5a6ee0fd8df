"""Programs over a mesh: bytes on the wire, solving, training, pipelines, compressed collectives, pods."""
