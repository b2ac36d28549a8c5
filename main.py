"""The command line of the SSUL reference code, verbatim, on segrow (segrow/commands/seed.py).

python main.py --data_root VOC2012 --dataset voc --task 15-1 --overlap --crop_val --lr_policy poly \
    --pseudo --freeze --bn_freeze --unknown --w_transfer --amp --mem_size 100
"""

from segrow.cli import entry, seed_main

if __name__ == "__main__":
    entry(seed_main)
