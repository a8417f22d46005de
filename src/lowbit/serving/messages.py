"""The bodies of requests. What is in them is text and numbers; no path, no code, no name of a file.

`model` is accepted, as clients send it, and not read: a service has one.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

Text = Annotated[str, Field(max_length=1 << 20)]


class Embed(BaseModel):
    """OpenAI's, but for token ids: those of another tokenizer would mean nothing here."""

    input: Text | list[Text]
    model: str = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None
    user: str | None = None


class Document(BaseModel):
    text: Text


class Rerank(BaseModel):
    """As Cohere, Jina and others have it."""

    query: Text
    documents: list[Text | Document]
    model: str = ""
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = False


class Predict(BaseModel):
    """A text, texts, or pairs of texts."""

    input: Text | list[Text | tuple[Text, Text]]
    model: str = ""


class Translate(BaseModel):
    input: Text | list[Text]
    model: str = ""
