"""Docstrings as Markdown: roles of Sphinx become code, doctests become blocks of code."""

import re

import griffe

_ROLE = re.compile(r':(?:attr|class|data|func|meth|mod):`([^`]+)`')
_DOCTEST = re.compile(r'^>>> .*(?:\n.+)*', re.MULTILINE)


class Markdown(griffe.Extension):
    """Changes all docstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Change one docstring, if there is one."""
        if obj.docstring is not None:
            text = _ROLE.sub(r'`\1`', obj.docstring.value)
            obj.docstring.value = _DOCTEST.sub(r'```pycon\n\g<0>\n```', text)
