"""Where the networks were published, for `tinyseg models`."""

PAPERS = {
    "plain": "the baseline",
    "fcn": "Long, Shelhamer & Darrell, CVPR 2015",
    "unet": "Ronneberger, Fischer & Brox, MICCAI 2015",
    "fc_densenet": "Jégou, Drozdzal, Vazquez, Romero & Bengio, CVPRW 2017",
    "crf_rnn": "Zheng, Jayasumana, Romera-Paredes, Vineet, Su, Du, Huang & Torr, ICCV 2015",
    "deeplab_v1": "Chen, Papandreou, Kokkinos, Murphy & Yuille, ICLR 2015",
    "deeplab_v2": "Chen, Papandreou, Kokkinos, Murphy & Yuille, PAMI 2018",
    "deeplab_v3": "Chen, Papandreou, Schroff & Adam, 2017",
    "deeplab_v3plus": "Chen, Zhu, Papandreou, Schroff & Adam, ECCV 2018",
    "deeplabv3": "Chen, Papandreou, Schroff & Adam, 2017 (torchvision's form)",
    "fastfcn": "Wu, Zhang, Huang, Liang & Yu, 2019",
    "gscnn": "Takikawa, Acuna, Jampani & Fidler, ICCV 2019",
    "alexnet": "Krizhevsky, Sutskever & Hinton, NIPS 2012",
    "caffenet": "Krizhevsky, Sutskever & Hinton, NIPS 2012",
    "vgg": "Simonyan & Zisserman, ICLR 2015",
    "googlenet": "Szegedy et al., CVPR 2015",
    "resnet": "He, Zhang, Ren & Sun, CVPR 2016",
    "densenet": "Huang, Liu, van der Maaten & Weinberger, CVPR 2017",
    "xception": "Chollet, CVPR 2017; Chen et al., ECCV 2018",
    "wide_resnet": "Wu, Shen & van den Hengel, Pattern Recognition 2019",
    "spp": "He, Zhang, Ren & Sun, ECCV 2014",
}
"""By how the names of a family begin."""


def paper_of(name: str) -> str:
    """The paper of the network called so: of the longest beginning that is known; "" if none is.

    >>> paper_of("fcn8s_at_once")
    'Long, Shelhamer & Darrell, CVPR 2015'
    """
    beginnings = [family for family in PAPERS if name.startswith(family)]
    return PAPERS[max(beginnings, key=len)] if beginnings else ""
