"""Make the buckets named on the command line that are not there yet. Address and keys: AWS's own variables."""

import sys

import boto3

if __name__ == "__main__":
    store = boto3.client("s3")
    there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in sys.argv[1:]:
        if name not in there:
            store.create_bucket(Bucket=name)
        print(f"bucket {name} {'was there' if name in there else 'made'}")
