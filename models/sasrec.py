"""SASRec: self-attentive sequential recommendation (Kang and McAuley, ICDM 2018)."""

from models.transformer import Transformer


class SASRec(Transformer):
    """Causal transformer; the state of a token predicts the next item."""

    causal = True
