"""For each rule what makes programs in which it fires, and programs that look alike in which it must not."""
