"""The counts of an answer's style."""

from __future__ import annotations

from rayward.data.judging.style import Style, style_of


def test_markdown_is_counted_outside_of_code() -> None:
    answer = """# Title
Some **bold** and __also bold__, 2 * 3 and snake_case__x.

## Part
1. one
  - two
* three
-no item, and #no header
```python
# a comment
- **x**
```
"""
    assert style_of(answer) == Style(len(answer), headers=2, lists=3, bold=2)
    assert style_of("") == Style(0, 0, 0, 0)
