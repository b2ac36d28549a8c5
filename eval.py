"""The evaluation of the SSUL reference code, verbatim, on segrow (segrow/commands/seed.py).

python eval.py --data_root VOC2012 --model deeplabv3_resnet101 --task 15-1 --overlap --crop_val --unknown
"""

from segrow.cli import entry, seed_eval

if __name__ == "__main__":
    entry(seed_eval)
