"""What every kind of file shares: writing whole files, and reading fields by their type and range."""

from .writing import check_writable, replacing, write_file

__all__ = ["check_writable", "replacing", "write_file"]
