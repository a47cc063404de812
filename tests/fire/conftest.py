from small import small

__all__ = ["small"]
