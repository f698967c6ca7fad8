"""Machinery with no opinion on captions: one subject a file, nothing imported from the top level."""
