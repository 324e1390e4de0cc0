"""Create the S3 buckets named on the command line if they do not exist. Address and keys: AWS's variables."""

import sys

import boto3

if __name__ == "__main__":
    store = boto3.client("s3")
    existing = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in sys.argv[1:]:
        if name not in existing:
            store.create_bucket(Bucket=name)
        print(f"bucket {name} {'exists' if name in existing else 'created'}")
