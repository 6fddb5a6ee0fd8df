"""Every rule on random shapes, dtypes and special values: does it keep what its level promises?"""
